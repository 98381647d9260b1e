"""Schemes of steps and their baselines on one data set: the comparison of arXiv 2411.13504."""
