"""Carry out a recipe as a Ray job.

ray job submit --working-dir . -- python jobs/run.py jobs/recipes/quickstart.yaml [--set key=value] [--run-dir DIR]

The run directory is $BOOM_RAY_HOME/NAME, else ~/boom_ray/runs/NAME; on several nodes it must be storage that all of
them share. The exit code is the run's: 0 done, 2 a mistake in recipe or data, 1 anything else.
"""

import sys

from boom_ray.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "run")
    main()
