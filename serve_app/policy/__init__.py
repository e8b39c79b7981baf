"""The routing brain. Pure: standard library only, no clock, no global random numbers, no logging.

Each function takes what it needs, `now` included, and returns a value that explains itself.
"""
