"""The command `boom-ray study` as a Ray job: ray job submit --working-dir . -- python jobs/study.py --help"""

import sys

from boom_ray.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "study")
    main()
