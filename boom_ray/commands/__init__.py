"""The commands of `boom-ray`, a module each."""
