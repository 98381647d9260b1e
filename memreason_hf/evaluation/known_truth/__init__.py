"""A small world written out as questions and solutions, whose truth is known, and how judges agree with it."""
