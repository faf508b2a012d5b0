"""The campaign as one HTML page: nothing but itself is loaded, and all but the browser of answers reads without JavaScript."""
