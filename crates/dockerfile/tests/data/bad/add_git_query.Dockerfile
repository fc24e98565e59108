FROM a
ADD https://me:secret@example.com/x.git?depth=1 /
