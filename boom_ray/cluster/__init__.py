"""What the driver and its cluster have to do with one another: sessions, jobs, nodes that come and go, signals."""
