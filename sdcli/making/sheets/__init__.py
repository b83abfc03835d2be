"""Sheets of pictures: a PNG, or a page for a browser, whose axes are the keys that differ between the recipes.

    entries.py   pictures, with their recipes and command lines
    axes.py      which keys differ, and which of them are rows, columns and headings
    images.py    the pictures as they are shown: small copies, made in parallel
    fonts.py     text in pictures
    drawing.py   the PNG
    page.py      the page; page.html, page.css and page.js are its parts
    writing.py   files of sheets

DejaVuSans.ttf is a part of DejaVu Sans (see DejaVuSans.LICENSE.txt).
"""
