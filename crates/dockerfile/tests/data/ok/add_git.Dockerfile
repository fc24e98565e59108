FROM a
ADD https://me:secret@example.com/x.git#main:dir /
ADD --keep-git-dir --checksum=BE1F38EFE73C6A93CD8B82E7CE8DCC1B1CA4B7F3 https://example.com/x.git?ref=v1&subdir=a/b /src
