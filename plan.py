def show(args): pass
