"""The command `boom-ray evaluate` as a Ray job: ray job submit --working-dir . -- python jobs/evaluate.py --help"""

import sys

from boom_ray.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "evaluate")
    main()
