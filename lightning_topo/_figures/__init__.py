"""Figures of matplotlib, for notebooks and experiment trackers: numbers in, `Figure` out; no pyplot, no global state.

matplotlib is imported only when something is drawn.
"""
