print("nbdpull")
