"""Where files lie: disks, buckets and their mirrors on a node's disk."""
