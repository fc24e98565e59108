FROM Team/App
