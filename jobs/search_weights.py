"""`boom-ray search weights` as a Ray job: ray job submit --working-dir . -- python jobs/search_weights.py --help"""

import sys

from boom_ray.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["search", "weights"]
    main()
