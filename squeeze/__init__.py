"""Train a teacher on the real data, collect its statistics and barycenters, and hand it on."""
