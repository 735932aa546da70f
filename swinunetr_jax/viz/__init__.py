"""Pictures for people: figures with text from data, label maps over images, and previews of predictions.

matplotlib is imported when the first picture is drawn, because it takes a second that most commands do not need.
"""
