FROM a
ADD ssh://git:secret@github.com/u/r /
