"""The command `boom-ray run` as a Ray job, as KubeRay starts it: python jobs/run.py RECIPE [--set ...] [--run-dir DIR]

From a machine outside: boom-ray submit RECIPE --address http://127.0.0.1:8265

The run directory is $BOOM_RAY_HOME/NAME, else ~/boom_ray/runs/NAME; on several nodes it must be storage that all of
them share, or s3://BUCKET/PATH. boom_ray/exit_codes.py has the codes that it ends with.
"""

import sys

from boom_ray.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "run")
    main()
