"""Plans: what may go live, chosen by worth, confirmed on test rows, certified on calibration and test rows."""
