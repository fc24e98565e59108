FROM --platform=linux/x/y/z a
