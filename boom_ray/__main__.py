"""``python -m boom_ray`` is ``boom-ray``."""

from boom_ray.cli import main

main()
