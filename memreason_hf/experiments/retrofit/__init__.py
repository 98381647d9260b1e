"""A decoder trained at fixed depth gets a loop: does it learn from recurrences without losing what it was?"""
