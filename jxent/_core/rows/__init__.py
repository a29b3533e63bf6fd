"""Rows of scores → what a loss needs to know of each row."""
