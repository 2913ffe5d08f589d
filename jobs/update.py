"""The command `boom-ray update` as a Ray job: ray job submit --working-dir . -- python jobs/update.py --help"""

import sys

from boom_ray.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "update")
    main()
