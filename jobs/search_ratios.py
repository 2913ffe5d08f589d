"""The command `boom-ray search ratios` as a Ray job:

ray job submit --working-dir . -- python jobs/search_ratios.py jobs/recipes/quickstart.yaml --budget 3600
"""

import sys

from boom_ray.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["search", "ratios"]
    main()
