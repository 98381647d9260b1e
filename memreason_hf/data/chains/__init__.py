"""Chains of facts: the multi-hop world of the depth-extrapolation study."""
