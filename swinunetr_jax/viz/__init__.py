"""Pictures: figures with text from data, label maps drawn over images, and previews of predictions.

matplotlib is imported when the first picture is drawn, because it takes a second that most commands do not need.
"""
