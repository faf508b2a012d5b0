"""Pictures of a campaign as plain SVG, for the page, the UI and a model card: no script, no library, readable without colour."""
