"""The colours of what is drawn, as a picture or in a page."""

# Okabe and Ito's (jfly.uni-koeln.de/color), told apart by colour-blind eyes; without its yellow, too pale on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
