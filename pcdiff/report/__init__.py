"""Pictures, 3D views and the HTML report of a case, drawn from values (`report.contents`): no scan is read here."""
