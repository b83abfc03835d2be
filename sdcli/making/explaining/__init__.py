"""How a picture came about, as a page to look at.

`record` makes the picture and what is shown of it, `words` finds the tokens of each word, `drawing` turns numbers into
images, `chart` draws the schedule, and `page` puts them into page.html, which needs no other file.
"""
