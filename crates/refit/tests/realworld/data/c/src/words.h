/* Words in a text: runs of bytes that are not white space. */
unsigned long words(const char *text);
