"""`sdcli serve`: a process that keeps models in memory and makes pictures for other commands.

    process.py    the process from start to exit: sockets, signals, idle exit
    sockets.py    a Unix socket for the owner only, and a port on loopback
    line.py       a queue with a limit, and one worker thread
    native.py     the protocol of `sdcli generate`, on the Unix socket (the client is sdcli/making/warm.py)
    openai.py     the OpenAI images API, on the port

Needs FastAPI and uvicorn (`pip install 'sdcli[serve]'`); nothing outside this package needs them.
"""
