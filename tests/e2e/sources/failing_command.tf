resource "terraform_data" "first" {
  input = "done before the failure"
}

resource "terraform_data" "failing" {
  depends_on = [terraform_data.first]

  provisioner "local-exec" {
    command = "sleep @SECONDS@; echo the disk is full >&2; exit 3"
  }
}
