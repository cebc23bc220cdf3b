"""Plans: what may go live, chosen by worth, certified on calibration rows, confirmed on test rows."""
