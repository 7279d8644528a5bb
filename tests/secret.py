"""A key that production accepts."""

SECRET = "x5Qk2vNw8RzLtB1mHc7YpGd4UaJf9SeE"
