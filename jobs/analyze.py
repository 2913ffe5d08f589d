"""The command `boom-ray search analyze` as a Ray job:

ray job submit --working-dir . -- python jobs/analyze.py /shared/runs/quickstart --out /shared/analysis
"""

import sys

from boom_ray.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["search", "analyze"]
    main()
