"""Plans: what may go live, chosen on selection rows, certified on calibration rows, confirmed on test rows."""
