"""Passes that convert a model without simplifying it: operator set versions, layouts, interfaces."""
