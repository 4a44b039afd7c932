"""Intervals, tests and rate estimates from plain numbers; nothing about models or runs."""
