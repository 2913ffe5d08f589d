"""The incremental update: new data in, one light member, one merge, the next version of a published model."""
