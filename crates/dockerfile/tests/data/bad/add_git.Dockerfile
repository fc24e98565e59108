FROM a
ADD https://me:secret@example.com/x.git#main:dir /
