"""Calibration: this machine measured, as a table that simulations and policies decide by (`docs/calibrate.md`).

``run.calibrate`` measures; ``command`` is `alignedsched-torch calibrate`.
"""
