"""Room 6 and the maths of room 7: flow matching, pure functions."""
