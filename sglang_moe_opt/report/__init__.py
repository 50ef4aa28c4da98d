"""What every report is drawn with: the page, its tables, axes and markers. No numbers come from here."""
