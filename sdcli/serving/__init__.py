"""`sdcli serve`: a process that keeps models in memory and makes pictures for other commands.

    process.py      the process from start to exit: sockets, signals, idle exit
    background.py   a child that continues when the command has returned
    sockets.py      a Unix socket for the owner only, and a port on loopback
    connections.py  connections with a time limit, and a limit to their number
    limits.py       what clients may use
    log.py          a line on stderr for each request
    line.py         a queue with a limit, and one worker thread
    native.py       the protocol of `sdcli generate`, on the Unix socket (the client is sdcli/making/warm.py)
    openai.py       the OpenAI images API, on the port
    edits.py        … its forms with images
    events.py       … its streams
    page.py         the page at /, whose files are in static/
    guard.py        … which requests are let in
    refusals.py     … errors in its form and its terms

Needs FastAPI and uvicorn (`pip install 'sdcli[serve]'`); nothing outside this package needs them.
"""
