"""The command `boom-ray merge` as a Ray job: ray job submit --working-dir . -- python jobs/merge.py --help"""

import sys

from boom_ray.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "merge")
    main()
