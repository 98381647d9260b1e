"""Chains of facts: the multi-hop data set of the depth-extrapolation study."""
