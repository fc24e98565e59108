FROM a
COPY https://me:secret@example.com/x /
