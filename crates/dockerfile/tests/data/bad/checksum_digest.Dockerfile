FROM a
ADD --checksum=md5:00 https://me:secret@h/a /
